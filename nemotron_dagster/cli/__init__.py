"""The ``nemotron`` command. Thin: each command imports what it needs when it runs."""
