"""Canonical column names."""

USER_ID = "user_id"  # as in the logs
ITEM_ID = "item_id"  # as in the logs
USER = "user"  # 0 .. U-1
ITEM = "item"  # 0 .. V-1
TIMESTAMP = "timestamp"  # any unit, increasing
POSITION = "position"  # order within a user, 0 is the oldest
EVENT = "event"
BASKET = "basket"  # lines of one order; in prepared data numbered from 0 within a user
RATING = "rating"
QUANTITY = "quantity"  # of an order line; a return has none or a negative one
CLICKED = "clicked"  # a shown item was chosen
CLICKED_AT = "clicked_at"  # when that was known, where it was later than the impression
SLOT = "slot"  # rank in the slate, 0 is the top
PROPENSITY = "propensity"  # probability that the item was shown
EXPOSURE = "exposure"  # how a held-out impression came about: validation and biased (the platform's), or random
DAYS = "days"  # time in days since 1970
HISTORY_LENGTH = "history_length"  # interactions of the user before an impression
HISTORY_UNTIL = "history_until"  # the same, with those at the time of the impression
TEXT = "text"
ATTRIBUTES = "attributes"
GROUPS = "groups"  # `column=value`, what requests may name; no model sees them
