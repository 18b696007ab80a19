"""One module per artifact type, named as the type; ``registry.ArtifactType`` says what each holds."""
