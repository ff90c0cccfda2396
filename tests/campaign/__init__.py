import os

SCALE = int(os.environ.get("CAMPAIGN_SCALE", "1"))
"""How many times what `make test` tries; `make campaign` sets it."""
