"""The guarded worker: runs code on untrusted bytes in processes that can do nothing but compute and answer."""
