"""Intake: from whatever a person hands over to a checked, captioned training set.

    guard.py         which network addresses may be reached, and a transport that reaches no other
    fetch.py         the one fetcher: limits, retries, resume, bounded concurrency
    sandbox/         child processes with limits, in which everything that a stranger sent is opened
    archives.py      zip and tar, read member by member, hostile ones refused by name
    pictures.py      one way to every picture format; the normalised form that is stored
    parallel.py      a few at a time, bounded
    names.py         what is the same name: Unicode forms, case, code pages of archives
    tables.py        tables of text as people write them, each row held against the header
    sidecars.py      captions that come along with pictures
    companions.py    captions and masks found for the pictures they belong to
    edits.py         a caption table that was edited by hand
    payloads.py      base64 and data URIs; uploads in the store
    workbooks.py     XLSX as rows of plain values
    weights.py       files of weights, found, fetched and looked through
    folders.py       local folders and S3 prefixes, and which of them may be named
    sources.py       every kind of source as a list of origins that can be read and resumed one by one
    collect.py       reads the origins of a request into a manifest
    judge.py         verdicts: pure rules over what was measured
    measures.py      sharpness, perceptual hash, near duplicates
    manifest.py      one row per picture, kept in the store
    faces.py         face detectors
    buckets.py       training shapes by aspect ratio, and the crop that fits one
    training_set.py  full pictures, face crops, the held-out choice, the leakage check
    subject.py       token and class name in a caption
    captions.py      the caption table, its versions and precedence
    verdict.py       all of it in words, before anything is queued
    drop.py          what lies in the drop folder and is complete
    tune_file.py     `tune.yaml` into a `TuneRequest`, errors by name

Nothing here imports dagster or torch.
"""
