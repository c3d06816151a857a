"""The one place that builds concrete things and puts them together; and what is told of the whole."""
