"""How the tiny models are trained from nothing. One file per model; `data` draws what they learn from."""
