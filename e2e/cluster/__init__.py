"""A real Kubernetes on one small machine: `python -m e2e.cluster up|down|status|kubeconfig|build|load-image`."""
