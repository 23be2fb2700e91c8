"""The operator's and gateway's images, built without a container engine or a registry."""
