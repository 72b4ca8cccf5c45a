"""A service that labels texts over HTTP, and says which of them a person has to review.

Here belongs what a session needs to be asked by many at once: keys and roles, limits, a queue whose
requests share batches, the HTTP routes, metrics, and the change to a newer checkpoint while it
runs. How a text is labelled belongs to serving/, and thresholds are chosen in decisions/. FastAPI,
uvicorn and prometheus-client are imported in this room alone; they are the extra `serve`.

keys.py      who may call what
limits.py    how much is accepted, and the refusals
guard.py     what is checked of a request before its body is parsed
labelling.py a session whose programs are all compiled beforehand
policy.py    pass, block or review
queue.py     the texts that wait
engine.py    the thread that answers them
app.py       the HTTP routes
reload.py    another checkpoint while the service runs
watch.py     does so by itself when another task is finished
start.py     a service of a workdir
load.py      many clients, to measure it
server.py    serves until a signal, and answers every request that was accepted

reviews.py   texts to review and the audit of decisions, in SQLite; its tables: review_tables.py
agreement.py when a label is settled, and Cohen's kappa
incoming.py  texts that are pasted or uploaded
exports.py   files of a task, Label Studio's JSON, the audit
review_routes.py, page/   the reviewer's page and what it calls
"""
