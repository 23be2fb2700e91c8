"""What a pod's processes used during an invocation, read from the node's cgroups."""
