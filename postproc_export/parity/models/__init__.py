"""The attached file and its parts as models that can be run, in every way there is to run them."""
