"""Curation of JSONL rows with NeMo Curator: reading, filters, deduplication, report."""
