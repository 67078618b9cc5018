"""State of a method that is neither trained nor averaged: banks of embeddings, and draws from the training set."""
