"""Samba's client of the witness service: registers, says what it is told, and ends its registration.

Arguments: binding, user (- for a ticket), password, name of the cluster, address, share (- for version 1),
how many notices it waits for. Each line that is printed is one thing that has happened."""

import sys

from samba import credentials, param
from samba.dcerpc import witness


def main():
    binding, user, password, name, address, share, notices = sys.argv[1:8]
    lp = param.LoadParm()
    lp.load("/dev/null")
    creds = credentials.Credentials()
    creds.guess(lp)
    if user == "-":
        creds.set_kerberos_state(credentials.MUST_USE_KERBEROS)
    else:
        creds.set_kerberos_state(credentials.DONT_USE_KERBEROS)
        creds.set_username(user)
        creds.set_password(password)
        creds.set_domain("")
    client = witness.witness(binding, lp, creds)
    say = lambda *words: print(*words, flush=True)

    interfaces = client.GetInterfaceList()
    for it in interfaces.interfaces:
        say("interface", it.group_name, it.ipv4, it.state, it.flags, hex(it.version))
    if share == "-":
        handle = client.Register(witness.WITNESS_V1, name, address, "client.example")
    else:
        handle = client.RegisterEx(witness.WITNESS_V2, name, share, address, "client.example",
                                   witness.WITNESS_REGISTER_IP_NOTIFICATION, 120)
    say("registered")
    for _ in range(int(notices)):
        notice = client.AsyncNotify(handle)
        for message in notice.messages:
            if notice.type == witness.WITNESS_NOTIFY_RESOURCE_CHANGE:
                say("changed", message.name, message.type)
            else:
                told = ["%s/%#x" % (it.ipv4, it.flags) for it in message.addr]
                say("told", notice.type, *told)
    client.UnRegister(handle)
    say("unregistered")
    try:
        client.UnRegister(handle)
    except Exception as error:
        say("again", hex(error.args[0]))
    for wrong in [(7, name, address), (witness.WITNESS_V1, "elsewhere", address)]:
        try:
            client.Register(*wrong, "client.example")
        except Exception as error:
            say("refused", hex(error.args[0]))


main()
