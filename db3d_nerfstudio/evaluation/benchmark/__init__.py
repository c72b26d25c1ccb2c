"""Subjects by methods: cells, tables, pictures, and what people answered."""
