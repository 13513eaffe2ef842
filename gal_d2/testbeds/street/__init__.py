"""The street set: photographs with pixel labels as LVIS-style data, and candidates for their pool.

The photographs are Clothing Co-Parsing's (Yang et al. 2014), which has a label for each kind of
garment and no instances: what is worn in pairs is split by connected component, of anything else
the photographed person has one. Bystanders are not labelled. So a category that is there counts as
*not exhaustively* annotated, and one that is not as absent: of a bystander's the first rule spares
what the photographed person wears, too, and the second does not.

The candidates are photographs of single garments under the names of other, similar ones: what a
text-to-image model gets wrong, imitated by labels. They are yet to be cut out. What they really
show is in a table that only reports read.

Layout of the output folder::

    annotations/street_{train,val}.json
    images/{train,val}/0001.jpg ...
    candidates/<category>/<photograph>.jpg
    candidates.parquet    file, category, label, kind, ambiguous
    pool/                 what tools/generate_instances.py makes of the candidates
    pool_truth.parquet    pool_id, kind, ambiguous: of the pool, once it is there
"""
