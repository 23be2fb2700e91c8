"""SeBS: a benchmark that reads its input from the injected storage and writes its result there."""

import io

from . import storage

client = storage.storage.get_instance()


def handler(event):
    bucket = event["bucket"]["bucket"]
    found = client.download_stream(bucket, event["object"]["key"])
    key = client.upload_stream(bucket, "out.bin", io.BytesIO(bytes(found)[::-1]))
    return {"result": {"key": key, "size": len(found)}, "id": event["request-id"]}
