"""How lm-eval finds this package. Nothing here is imported by the rest of it."""
