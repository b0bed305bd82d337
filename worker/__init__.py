"""A node: claims what fits, stages inputs, runs containers, ships logs, publishes outputs."""
