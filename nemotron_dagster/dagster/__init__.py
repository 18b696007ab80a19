"""Steps as Dagster assets, artifact types as IO managers, profiles as resources."""
