"""Reads a disk image to its end with a library that others wrote, and writes what the disk holds to a file.

    read.py READER FORMAT OUT IMAGE...

READER is `dissect` or `libyal`; FORMAT is vhd, vhdx or qcow2. IMAGE is followed by those below it, which libyal
is given one by one; dissect looks for them itself.
"""

import sys
from pathlib import Path

PIECE = 1 << 20


def dissect(kind, images):
    """A stream of dissect.hypervisor."""
    from dissect.hypervisor.disk import qcow2, vhd, vhdx

    image = Path(images[0])
    match kind:
        case "vhd":
            return vhd.VHD(image.open("rb"))
        case "vhdx":
            return vhdx.VHDX(image)
        case "qcow2":
            return qcow2.QCow2(image).open()


class Whole:
    """An image of libvhdi or libqcow as a stream."""

    def __init__(self, file):
        self.file = file
        self.left = file.get_media_size()

    def read(self, size):
        piece = self.file.read_buffer(min(size, self.left))
        self.left -= len(piece)
        return piece


def libyal(kind, images):
    """A stream of libvhdi or libqcow."""
    if kind == "qcow2":
        import pyqcow

        file = pyqcow.file()
        file.open(images[0])
        return Whole(file)
    import pyvhdi

    chain = []
    for image in images:
        file = pyvhdi.file()
        file.open(image)
        chain.append(file)
    for child, parent in zip(chain, chain[1:], strict=False):
        child.set_parent(parent)
    stream = Whole(chain[0])
    # A child does not keep its parents.
    stream.chain = chain
    return stream


def main():
    reader, kind, out, *images = sys.argv[1:]
    stream = {"dissect": dissect, "libyal": libyal}[reader](kind, images)
    with open(out, "wb") as file:
        while piece := stream.read(PIECE):
            file.write(piece)


main()
