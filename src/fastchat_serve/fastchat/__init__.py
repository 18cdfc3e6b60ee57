"""FastChat's processes as peers: their workers among ours, and ours at their controllers.

`conversation.py` renders conversations with a template that a worker sends, `carried.py` is what our workers send in
place of one, `cumulative.py` turns texts that grow into what is new of them; all three are plain functions of text.
`client.py` talks to one peer. `engine.py` is the model behind it, under our contract; `peer.py` keeps the workers of
one address, `fleet.py` all addresses and their leases, and `addresses.py` says which of them may be dialled.
`registrar.py` registers this process at FastChat's controllers.
"""
