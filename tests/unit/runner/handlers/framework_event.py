"""functions-framework: a CloudEvent function; what it hears is written to a file."""

import os
from pathlib import Path

import functions_framework


@functions_framework.cloud_event
def heard(cloud_event):
    line = f"{cloud_event['id']} {cloud_event['type']} {cloud_event.data['n']}\n"
    Path(os.environ["HEARD"]).write_text(line)
