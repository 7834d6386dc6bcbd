"""The command ``undercroft``: thin clients of ARM and of the control socket, and the agent's commands.

``local`` is about this machine (up, down, status, fabric), ``management`` the client for ARM that ``network``, ``vaults``, ``vms`` and
``principals`` use, ``agent`` what runs on a protected host. Nothing heavy is imported before a command needs it.
"""
