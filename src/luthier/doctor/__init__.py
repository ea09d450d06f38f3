"""The doctor: what is wrong with a data set, row by row and as a whole, with places and remedies."""
