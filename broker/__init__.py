"""The record of every job and the only door to it: job model, Redis functions, intake, controller, client, commands."""
