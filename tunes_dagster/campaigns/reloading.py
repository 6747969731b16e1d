"""Tells a running Dagster UI that there are other campaigns now, through its own GraphQL."""

from __future__ import annotations

from tunes_dagster.core.urls import is_loopback

_MUTATION = """
mutation { reloadWorkspace { __typename ... on Workspace { locationEntries { name locationOrLoadError { __typename } } }
  ... on PythonError { message } } }
"""
_BY_HAND = "In the UI: Deployment > Code locations > Reload. A daemon that starts later sees it by itself."


def reload_code_location(ui_url: str, timeout: float = 60.0) -> str:
    """Reload the code locations of a running UI and return a sentence about it; the daemon follows within a minute.

    Args:
        ui_url: Address of the Dagster UI; empty asks nobody.
        timeout: Seconds.
    """
    if not ui_url:
        return f"Reload the code location to see it on the schedule. {_BY_HAND}"
    import httpx

    try:
        answer = httpx.post(
            f"{ui_url.rstrip('/')}/graphql",
            json={"query": _MUTATION},
            timeout=httpx.Timeout(timeout, connect=5.0),
            trust_env=not is_loopback(httpx.URL(ui_url).host),  # no proxy leads to this machine
        ).raise_for_status()
        found = answer.json()["data"]["reloadWorkspace"]
    except httpx.ReadTimeout:
        return f"The UI at {ui_url} is still reloading after {timeout:.0f} s: see its page of code locations."
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return f"No Dagster UI answers at {ui_url} (TUNES_UI_URL), so nothing was reloaded. {_BY_HAND}"
    entries = found.get("locationEntries", [])
    broken = [one["name"] for one in entries if one["locationOrLoadError"]["__typename"] == "PythonError"]
    if found["__typename"] != "Workspace" or broken:
        return f"The UI at {ui_url} could not reload {', '.join(broken) or 'the workspace'}: look there."
    return f"The UI at {ui_url} has reloaded; the daemon follows within a minute."
