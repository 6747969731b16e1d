"""What makes the embedded models of `tunes_dagster.tiny`, from nothing; no wheel holds it."""
