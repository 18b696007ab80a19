"""What the payloads share. Ships into containers as it is: never import dagster, nemo_run or nemotron_dagster here."""
