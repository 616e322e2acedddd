"""A Flask application as it was: a page, a form, JSON, uploads, and a stream of events."""

import itertools
import time

from flask import Flask, Response, redirect, request

app = Flask(__name__)
orders = []

PAGE = """<!doctype html>
<title>Shop</title>
<link rel="stylesheet" href="/static/shop.css">
<h1>Shop</h1>
<form method="post" action="/orders">
  <input name="item" value="tea"> <button>Order</button>
</form>
<ul id="orders"></ul>
<p id="clock">the clock has not come</p>
<script>
  fetch("/orders").then(answer => answer.json()).then(orders => {
    for (const item of orders) {
      document.querySelector("#orders").append(
        Object.assign(document.createElement("li"), {textContent: item}));
    }
  });
  const clock = new EventSource("/clock");
  clock.onmessage = event => {
    document.querySelector("#clock").textContent = `tick ${event.data}`;
  };
</script>
"""


@app.get("/")
def page():
    """For people."""
    return PAGE


@app.get("/orders")
def list_orders():
    """For programs."""
    return orders


@app.post("/orders")
def order():
    """A form was sent."""
    orders.append(request.form["item"])
    return redirect("/", code=303)


@app.post("/photos")
def photo():
    """However large it is: it is read as it comes."""
    size = 0
    while piece := request.stream.read(64 << 10):
        size += len(piece)
    return {"bytes": size}


@app.get("/clock")
def clock():
    """Events, for as long as somebody listens."""

    def ticks():
        for number in itertools.count():
            yield f"data: {number}\n\n"
            time.sleep(1)

    return Response(ticks(), mimetype="text/event-stream")
