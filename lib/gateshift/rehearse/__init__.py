"""The rehearsal: whole migrations on the lab, by the same notebooks and the same command as in production."""
