"""One model over several processes of one pod: tensor parallel and pipeline parallel (engine.md §5).

Rank 0 is the server: it schedules, samples and answers. The others execute its step plans and
decide nothing. `placement` says what a rank holds, `shard` reads that from a checkpoint, `wire` and
`channel` carry step plans, `collectives` the tensors, `group` starts the processes and ends them.
"""
