"""Today's clients pull through the cache, in good times and in trouble: ``make clients`` writes docs/clients.md.

They come from Debian's newest suite, in a chroot (``chroot``). Each client (``engines``, ``containers``,
``registry_tools``) goes through each situation (``situations``, ``trial``). ``tap`` hears what it sends, ``report``
writes what was seen.
"""
