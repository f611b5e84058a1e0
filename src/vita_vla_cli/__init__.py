"""The command line `vita-vla`, beside the package that LeRobot imports and not inside it.

Importing `lerobot_policy_vita_vla` registers its policies with LeRobot, which takes LeRobot's own import:
three to five seconds. Help, a wrong flag or `vita-vla doctor` on a broken installation must neither wait for
that nor fail with it, so the words of the command line live here and each verb imports its work when it runs.
"""
