"""The gateway: HTTP APIs over the registry. It accepts, reports and hands out files; the pipeline does the work.

`app.py` assembles, `desk.py` is what every dialect may ask for, `dialects/` holds one module per API. Nothing here
imports Dagster or torch, and no request waits for the network.
"""
