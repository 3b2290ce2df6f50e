"""Published Keras scripts, written anew in the same shape: as they are, and moved to our parts."""
