"""Stores: what limpet needs from a place for objects, and its adapters.

``base`` is the contract, ``urls.open_store`` the way in. Nothing is imported before it is used.
"""
