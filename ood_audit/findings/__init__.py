"""From a ranking to decisions: findings of each kind, and acting on them."""
