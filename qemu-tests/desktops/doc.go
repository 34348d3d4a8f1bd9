// Package desktopstest runs what stands in the images of brokers, gateways and
// desktops as it runs on them, natively: the broker's site under gunicorn and nginx
// with a real PostgreSQL, the gateway's HAProxy and websockify, a desktop's Xvnc,
// the balancer's HAProxy before them, and a browser in front of it all.
package desktopstest
