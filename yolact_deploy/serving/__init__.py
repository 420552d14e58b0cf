"""Models as services: an HTTP application with the KServe v2 protocol, and Triton model repositories."""
