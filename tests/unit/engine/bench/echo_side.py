"""A side without an engine: answers the protocol, counts up from the last prompt token."""

import json
import os
import sys
import time

with os.fdopen(int(os.environ["TRIMTAB_BENCH_REPLY_FD"]), "w") as replies:
    print("noise on standard output")
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        if do == "load":
            reply = {"vocab": 100, "version": sys.argv[1], "given": request}
        elif do == "answer":
            answers = [[p[-1] + i for i in range(request["output"])] for p in request["prompts"]]
            reply = {"seconds": float(sys.argv[2]), "answers": answers}
        elif do == "spin":
            reply = {}
        elif do == "die":
            print("the last words")
            sys.exit(3)
        else:
            reply = {"error": f"no command {do}"}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()
        while do == "spin":
            time.process_time()
