"""Texts that can be found again: an index of examples and documents, and what makes one.

Here belong the index with its file, the embeddings by which texts are near to each other, and the
cutting of documents into passages. The texts themselves are kept, so an index is made only where a
user asks for one, and what is deleted from it is gone from its file. It imports no other room: who
asks, and what is done with what is found (a vote, a prompt, a page of sources) belongs to the
methods and to serving/. faiss, which searches, is the extra `retrieval`.

    from moecl_jax.retrieval import Entry, Index, embedder_named

    embed = embedder_named("wordllama")
    index = Index(embed.name)
    index.add([Entry("Win a prize", answer="spam")], embed(["Win a prize"]))
    index.search(embed(["You have won"]), count=1)[0][0].entry.answer   # "spam"

index.py      the index: add, delete, search, save, load
embedding.py  texts to vectors, without the frozen model
documents.py  folders of text and Markdown files to passages
"""

from moecl_jax.retrieval.documents import documents_of, passages_of
from moecl_jax.retrieval.embedding import Embedder, embedder_named
from moecl_jax.retrieval.index import Entry, Hit, Index

__all__ = ["Embedder", "Entry", "Hit", "Index", "documents_of", "embedder_named", "passages_of"]
