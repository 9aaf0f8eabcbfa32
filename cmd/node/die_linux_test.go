package main

import "syscall"

// dieWithTest ends the nodes when the test process dies, however it dies.
func dieWithTest() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
