"""Campaigns: tables of prompts × tunes, rendered on a schedule or on demand.

    dates.py     when a campaign's dates are (cron, time zone)
    files.py     the YAML of a campaign, with every mistake by line
    tables.py    the table of prompts: CSV, TSV, XLSX, or rows inside the YAML
    expand.py    rows × tunes × variables × sizes × seeds → prompts
    estimate.py  pictures, seconds and dollars of a plan
    plan.py      check, plan and store one date; what is there already is kept
    keeping.py   campaigns in store and registry: add, reload, list, remove
    report.py    contact sheets, page and table of a finished date

Plain Python: what Dagster shows of it stands in `assets/campaigns.py`.
"""
