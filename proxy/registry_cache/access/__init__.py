"""Who may ask for what. Decisions are pure: no request, no clock and no file comes in here."""
