"""stub"""


class Trunk:
    pass
