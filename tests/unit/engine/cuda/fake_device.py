"""A device whose copies happen at once and whose streams keep a log of their order."""

from contextlib import contextmanager
from itertools import cycle

import torch


class FakeEvent:
    def __init__(self, number, *, done):
        self.number, self.done, self.at_milliseconds = number, done, 0.0

    def query(self):
        return self.done

    def elapsed_time(self, end_event):
        return end_event.at_milliseconds - self.at_milliseconds


class FakeStream:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def wait_event(self, event):
        self.log.append((self.name, "waits for", event.number))

    def record_event(self, event):
        self.log.append((self.name, "records", event.number))
        return event


class FakeDevice:
    """Events are numbered; `log` holds (stream, what, event).

    Attributes:
        prompt: Whether events are done as soon as they are made.
    """

    place = torch.device("cpu")
    processors = 4
    prompt = True

    def __init__(self):
        self.log, self.events = [], []
        self.compute = FakeStream(self.log, "compute")
        self._names = cycle(("inward", "outward"))

    def new_stream(self):
        return FakeStream(self.log, next(self._names))

    def new_event(self):
        self.events.append(FakeEvent(len(self.events), done=self.prompt))
        return self.events[-1]

    def current_stream(self):
        return self.compute

    @contextmanager
    def on(self, stream):
        self.log.append((stream.name, "begins", None))
        yield
        self.log.append((stream.name, "ends", None))
