"""Losses as pure functions of tensors: no state, no network, no device of their own."""
