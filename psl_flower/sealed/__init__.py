"""Sealed patch stores: encrypted records, signed manifests, authorised restoration.

The format is described byte by byte in docs/store-format.md, what it protects and what not in
docs/threat-model.md.

    keys, keyfile, keyring           identities, their files, folders of these
    secret, suite                    primitives and purposes
    folder, folders, url_folder      the files of a store, local or by URL
    web_answers, listing             limits on a web server's answers, and its folder listings
    header, records, merkle, segment the immutable files of a store
    envelope, manifest, seen         signed documents; what was seen before
    epoch, shares                    keys of one epoch; k of n
    sealing, ingest, rotate, bundle  the owner
    store                            the node
    labels                           the Lower server, and who corrects labels
    audit, restore, export           the restorers
    remote                           restoration through others' hands
    matching, verify                 anyone
"""
