"""`Graph` to `LinearSpec`s; `Graph` + `Plan` to `Program`."""
