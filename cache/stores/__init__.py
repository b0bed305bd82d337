"""Where sealed objects are kept, and what stands before a store: levels, budgets, other nodes."""
