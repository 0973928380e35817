"""Typed clients, one per service: model values in and out; pb conversions live here, and servicers use them too."""
