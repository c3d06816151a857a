"""The pictures of the documents, made anew by ``make pictures``: of the page, and of a cold and a warm pull."""
